"""The shipped configs: models to synthesize, devices to pose as."""
