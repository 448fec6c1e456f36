//! The attributes of anywire.
