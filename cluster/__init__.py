"""Ray clusters: find or start one, see what is there. Takes plain values; knows nothing of experiments."""
