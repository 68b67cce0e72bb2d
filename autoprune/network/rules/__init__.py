"""ATen operator -> how labels pass through it; one table filled by the files of this package."""
