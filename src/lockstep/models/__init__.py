"""Models: one file each. The function named like the file builds the module; its keyword-only arguments
are the options that parameters.yaml may give."""
