"""The installation: packages, torch, compilers, environment variables."""
