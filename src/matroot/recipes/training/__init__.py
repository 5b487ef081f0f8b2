"""Training the applications: configuration, loaders, classifier, the folder of a run, the loop."""
