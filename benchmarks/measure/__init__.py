"""What README and the guide cite: each script's first line is its claim."""
