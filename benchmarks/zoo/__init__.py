"""The models of the coverage benchmark: every architecture family of timm, and transformers' classes at tiny sizes."""
