//! Handshakes that succeed, fail in every named way, and go on with replaced files.
