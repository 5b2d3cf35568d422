"""The machinery of metrics: rescoring, masking, perturbation, imputation, regions."""
