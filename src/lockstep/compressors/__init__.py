"""How gradients are made small on the wire: one file a compressor, its class' keyword-only arguments its options."""
