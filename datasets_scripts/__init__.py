"""Data: one `datasets` builder per file, used directly (`Flickr8kCN(data_dir=...)`). See docs/data.md."""
