"""How exact meta-gradients are: certificates, accuracy, indefinite systems, counts."""
