"""The tree-structured Parzen estimator, on columns kept up to date instead of rebuilt per ask."""
