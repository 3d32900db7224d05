"""The memory of a process: its heap (`heap`), limits (`limits`) and peaks (`peaks`), and what a phase needs of it
(`phases`)."""
