"""Training speed of Llama-2-7B on the GPUs of this machine, setting by setting, and the first tests on a GPU."""
