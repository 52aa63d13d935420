"""Sparse attention: the lightning indexer and MLA over what it selects, then a file per seam."""
