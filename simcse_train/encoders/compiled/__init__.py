"""The layers of an encoder on a CPU, in kernels that the system's compiler makes at first use."""
