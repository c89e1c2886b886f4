"""What writes the parts of docs/ that follow from the code."""
