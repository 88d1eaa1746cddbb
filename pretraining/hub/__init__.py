"""Talk to the Hugging Face Hub: retries, remote files and their verification, repositories, the push queue."""
