"""What goes to production: selection, bundle, registry, prediction."""
