"""List a dataset and read its images: folders, archives, Parquet, videos, manifests."""
