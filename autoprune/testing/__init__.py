"""Public conformance suites and tiny networks for plug-in authors and our own tests."""
