"""The models that are measured: random ones of real shapes, and folders kept between runs."""
