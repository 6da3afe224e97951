"""The command line, `jaxevo`: words are parsed, the library is called, tables are printed."""
