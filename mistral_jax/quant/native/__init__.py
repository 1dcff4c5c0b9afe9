"""C++ kernels for products with packed weights on a CPU, compiled on the machine where they run."""
