"""Train a PyTorch model across processes from one YAML file, and keep a record that can be trusted."""

__version__ = "0.1.0"
