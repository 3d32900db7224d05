"""What is special to CUDA: attention through FlexAttention, adapters without casts, recorded work."""
