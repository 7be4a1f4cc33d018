"""The noise law: what an isotropic random change does to a matrix, at any size (docs: definitions, "Controls")."""
