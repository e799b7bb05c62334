"""Access to local folders, S3 and every fsspec URL. fsspec and s3fs live here."""
