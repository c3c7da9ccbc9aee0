"""What `vit_hf.explain` computes and draws."""
