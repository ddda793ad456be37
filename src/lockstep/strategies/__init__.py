"""Strategies: how ranks share the work. One file each, one class, its keyword-only options its schema."""
