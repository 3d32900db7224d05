"""What is special to a CPU: products through oneDNN, attention as products, fused frozen parts."""
