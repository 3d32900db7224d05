"""What is special to CUDA: attention through FlexAttention."""
