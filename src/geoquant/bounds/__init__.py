"""What theory promises about quantized networks."""
