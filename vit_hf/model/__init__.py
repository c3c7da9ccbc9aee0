"""The files that travel with every saved checkpoint."""
