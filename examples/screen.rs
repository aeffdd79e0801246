//! Prints the real screen over the captured cluster, for the eye and for the README's picture:
//!
//! ```text
//! cargo run --example screen -- 160 50 '3/flushed<enter>'          # ANSI
//! cargo run --example screen -- 80 24 '6' plain                    # letters; also: bare, light
//! cargo run --example screen -- --svg > assets/screen.svg
//! ```

#[path = "../tests/console/mod.rs"]
mod console;

use falconer::ui::picture;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|a| a == "--svg") {
        print!("{}", console::picture_svg());
        return;
    }
    let number = |i: usize, or: u16| args.get(i).and_then(|a| a.parse().ok()).unwrap_or(or);
    let look = match args.get(3).map(String::as_str) {
        Some("bare") => console::BARE,
        Some("light") => falconer::ui::theme::Look {
            light: true,
            ..console::DARK
        },
        _ => console::DARK,
    };
    let mut console = console::Console::lab((number(0, 120), number(1, 40)), look);
    console.press(args.get(2).map_or("", String::as_str));
    if args.get(3).is_some_and(|a| a == "plain") {
        print!("{}", console.screen());
    } else {
        print!(
            "{}",
            picture::ansi(&picture::render(&console.app, console.now))
        );
    }
}
