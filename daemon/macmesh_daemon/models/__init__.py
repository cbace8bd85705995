"""Model folders: what they hold, where they lie, their tokenizers."""
