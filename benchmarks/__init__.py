"""What the library costs and saves, as ratios: `python -m benchmarks --help`."""
