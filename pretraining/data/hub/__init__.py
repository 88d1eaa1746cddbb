"""Block stores on the Hugging Face Hub: upload, download, verification."""
