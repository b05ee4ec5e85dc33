"""A package of an application: it makes a word index of texts. It knows nothing of otel_tracker."""
