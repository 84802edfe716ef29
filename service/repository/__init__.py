"""Which versions are live. Generic over a loader, so that it can be tested with fakes."""
