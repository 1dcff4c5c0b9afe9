"""Machine code for products with packed weights on a CPU, compiled on the machine it runs on."""
