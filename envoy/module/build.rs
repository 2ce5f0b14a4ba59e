//! Links the module so that it needs the C library and nothing else.
//!
//! By default it would need `libgcc_s.so.1`, which images of Envoy may lack. A linker script under that name links the
//! static unwinder instead. The code must also stay mapped once it is loaded, because its thread may still run.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let out = std::env::var_os("OUT_DIR").expect("cargo sets it");
    let out = std::path::Path::new(&out).display();
    let script = "/* The unwinder, without a shared library. */\nGROUP ( libgcc_eh.a libgcc.a )\n";
    std::fs::write(format!("{out}/libgcc_s.so"), script).expect("the linker script can be written");
    println!("cargo:rustc-cdylib-link-arg=-L{out}");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    // A symbol that Envoy lacks then fails the start, and not a request.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,now");
}
