"""The built-in backbones, heads and datasets; of hidra_cli they import `api` alone."""
