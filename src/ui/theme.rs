//! Colour by meaning: roles, never colours, reach the screens. Four depths of colour, two backgrounds, and none at all,
//! where marks say what colour said.

use std::fmt::Write as _;

use ratatui::buffer::Buffer;
use ratatui::style::{Color, Modifier, Style};

use crate::engine::model::resource::Tone;

/// How many colours the terminal has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// None: bold, dim, underline and reverse only.
    None,
    /// The sixteen named ones.
    Ansi16,
    /// The 256 of xterm.
    Ansi256,
    /// 24 bits.
    True,
}

/// What the terminal can show and what the person wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Colours.
    pub depth: Depth,
    /// Dark letters on a light ground.
    pub light: bool,
    /// Only ASCII.
    pub ascii: bool,
}

impl Default for Look {
    fn default() -> Self {
        Self {
            depth: Depth::True,
            light: false,
            ascii: false,
        }
    }
}

/// What a flag asked for; `None` means look at the environment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LookFlags {
    /// `--color`.
    pub color: Option<ColorFlag>,
    /// `--light` or `--dark`.
    pub light: Option<bool>,
    /// `--ascii`.
    pub ascii: bool,
}

/// `--color`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColorFlag {
    /// By the environment, the default.
    Auto,
    /// At least sixteen, whatever `NO_COLOR` says.
    Always,
    /// None.
    Never,
    /// Exactly the sixteen named ones.
    Ansi16,
    /// Exactly the 256.
    Ansi256,
    /// 24 bits.
    True,
}

impl Look {
    /// Decides from flags and the environment (`NO_COLOR`, `COLORTERM`, `TERM`, `COLORFGBG`, `LC_ALL`, `LC_CTYPE`, `LANG`).
    #[must_use]
    pub fn detect(flags: LookFlags, env: &dyn Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| env(name).filter(|v| !v.is_empty());
        let term = set("TERM").unwrap_or_default();
        let by_terminal = || {
            let colorterm = set("COLORTERM").unwrap_or_default();
            if colorterm.contains("truecolor") || colorterm.contains("24bit") {
                Depth::True
            } else if term.contains("256") || term.contains("kitty") || term.contains("alacritty") {
                Depth::Ansi256
            } else if term.is_empty() || term == "dumb" {
                Depth::None
            } else {
                Depth::Ansi16
            }
        };
        let depth = match flags.color.unwrap_or(ColorFlag::Auto) {
            ColorFlag::Never => Depth::None,
            ColorFlag::Ansi16 => Depth::Ansi16,
            ColorFlag::Ansi256 => Depth::Ansi256,
            ColorFlag::True => Depth::True,
            ColorFlag::Always => by_terminal().max(Depth::Ansi16),
            ColorFlag::Auto if set("NO_COLOR").is_some() => Depth::None,
            ColorFlag::Auto => by_terminal(),
        };
        // COLORFGBG is "fg;bg" (rxvt, konsole): 7 and 9 to 15 are light grounds.
        let light = flags.light.unwrap_or_else(|| {
            set("COLORFGBG")
                .and_then(|v| v.rsplit(';').next().and_then(|bg| bg.parse::<u8>().ok()))
                .is_some_and(|bg| bg == 7 || bg >= 9)
        });
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .iter()
            .find_map(|n| set(n))
            .unwrap_or_default()
            .to_ascii_lowercase();
        let ascii = flags.ascii || !(locale.contains("utf-8") || locale.contains("utf8"));
        Self {
            depth,
            light,
            ascii,
        }
    }
}

/// A meaning that the screen gives a style to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Running text.
    Text,
    /// Less important text, rules, units.
    Dim,
    /// Names of sections and columns, the keys in the footer.
    Accent,
    /// The title of a section or an overlay.
    Title,
    /// The column that the table is sorted by.
    Sorted,
    /// The row or line under the cursor.
    Selected,
    /// A marked row.
    Marked,
    /// A row that has just changed.
    Changed,
    /// The band at the top.
    Band,
    /// A production profile.
    Production,
    /// A badge that must be seen, e.g. read-only.
    Badge,
    /// The part of a palette entry that matched.
    Match,
    /// Added, in a diff.
    Added,
    /// Removed, in a diff.
    Removed,
    /// Something impossible now.
    Disabled,
}

/// Roles and tones to styles.
#[derive(Clone, Copy, Debug)]
pub struct Theme {
    /// What it was made for.
    pub look: Look,
}

/// One colour in the three depths that have colours.
struct Ink(u32, Color);

impl Theme {
    /// The theme of a look.
    #[must_use]
    pub const fn new(look: Look) -> Self {
        Self { look }
    }

    fn color(self, dark: &Ink, light: &Ink) -> Color {
        let ink = if self.look.light { light } else { dark };
        let (r, g, b) = ((ink.0 >> 16) as u8, (ink.0 >> 8) as u8, ink.0 as u8);
        match self.look.depth {
            Depth::None => Color::Reset,
            Depth::Ansi16 => ink.1,
            Depth::Ansi256 => Color::Indexed(to_256(r, g, b)),
            Depth::True => Color::Rgb(r, g, b),
        }
    }

    fn fg(self, dark: &Ink, light: &Ink) -> Style {
        match self.look.depth {
            Depth::None => Style::new(),
            _ => Style::new().fg(self.color(dark, light)),
        }
    }

    /// The style of a role.
    #[must_use]
    pub fn role(self, role: Role) -> Style {
        let plain = self.look.depth == Depth::None;
        let bold = Style::new().add_modifier(Modifier::BOLD);
        match role {
            Role::Text => Style::new(),
            Role::Dim | Role::Disabled => self.dim(),
            Role::Accent => self
                .fg(&Ink(0x7F_B0_F5, Color::Cyan), &Ink(0x1F_5F_BF, Color::Blue))
                .patch(if plain { bold } else { Style::new() }),
            Role::Title => bold,
            Role::Sorted => self
                .fg(&Ink(0x7F_B0_F5, Color::Cyan), &Ink(0x1F_5F_BF, Color::Blue))
                .add_modifier(Modifier::BOLD),
            Role::Selected => {
                if self.look.depth <= Depth::Ansi16 {
                    Style::new().add_modifier(Modifier::REVERSED)
                } else {
                    Style::new()
                        .bg(self
                            .color(&Ink(0x2C_3A_52, Color::Blue), &Ink(0xD3_E2_FA, Color::Cyan)))
                        .add_modifier(Modifier::BOLD)
                }
            }
            Role::Marked => self
                .fg(
                    &Ink(0xD7_A8_F0, Color::Magenta),
                    &Ink(0x7A_2E_A8, Color::Magenta),
                )
                .add_modifier(Modifier::BOLD),
            Role::Changed => {
                if self.look.depth <= Depth::Ansi16 {
                    bold
                } else {
                    Style::new().bg(self.color(
                        &Ink(0x2E_36_22, Color::Black),
                        &Ink(0xE9_F3_CF, Color::White),
                    ))
                }
            }
            Role::Band => {
                if self.look.depth <= Depth::Ansi16 {
                    Style::new()
                } else {
                    Style::new().bg(self.color(
                        &Ink(0x1D_22_2C, Color::Black),
                        &Ink(0xEC_EF_F4, Color::White),
                    ))
                }
            }
            Role::Production => {
                if plain {
                    Style::new().add_modifier(Modifier::REVERSED | Modifier::BOLD)
                } else {
                    Style::new()
                        .fg(self.color(
                            &Ink(0xFF_FF_FF, Color::White),
                            &Ink(0xFF_FF_FF, Color::White),
                        ))
                        .bg(self.color(&Ink(0xA8_32_3A, Color::Red), &Ink(0xB3_26_1E, Color::Red)))
                        .add_modifier(Modifier::BOLD)
                }
            }
            Role::Badge => self
                .tone(Tone::Warn)
                .add_modifier(Modifier::BOLD | Modifier::REVERSED),
            Role::Match => self
                .role(Role::Accent)
                .add_modifier(Modifier::BOLD | Modifier::UNDERLINED),
            Role::Added => self.tone(Tone::Good),
            Role::Removed => self.tone(Tone::Bad),
        }
    }

    fn dim(self) -> Style {
        match self.look.depth {
            Depth::None => Style::new().add_modifier(Modifier::DIM),
            _ => self.fg(
                &Ink(0x7C_86_97, Color::DarkGray),
                &Ink(0x6B_72_80, Color::DarkGray),
            ),
        }
    }

    /// The style of a tone.
    #[must_use]
    pub fn tone(self, tone: Tone) -> Style {
        match tone {
            Tone::Plain => Style::new(),
            Tone::Dim => self.dim(),
            Tone::Good => self.fg(
                &Ink(0x8C_C9_8C, Color::Green),
                &Ink(0x2B_74_34, Color::Green),
            ),
            // Of the sixteen, cyan and yellow cannot be read on white.
            Tone::Busy => self.fg(&Ink(0x6C_C5_D9, Color::Cyan), &Ink(0x00_6F_8A, Color::Blue)),
            Tone::Warn => self.fg(
                &Ink(0xE6_B4_55, Color::Yellow),
                &Ink(0x96_64_00, Color::Magenta),
            ),
            Tone::Bad => self.fg(&Ink(0xF0_71_78, Color::Red), &Ink(0xB3_26_1E, Color::Red)),
        }
    }

    /// What stands before a state when colour cannot say it; two cells or none.
    #[must_use]
    pub const fn mark(self, tone: Tone) -> &'static str {
        match (self.look.depth, tone) {
            (Depth::None, Tone::Bad) => "✗ ",
            (Depth::None, Tone::Warn) => "! ",
            (Depth::None, Tone::Busy) => "~ ",
            (Depth::None, _) => "  ",
            _ => "",
        }
    }

    /// Cells that [`Theme::mark`] takes.
    #[must_use]
    pub const fn mark_width(self) -> u16 {
        match self.look.depth {
            Depth::None => 2,
            _ => 0,
        }
    }
}

/// The nearest colour of the 6×6×6 cube, or of the grey ramp for what is nearly grey. A dark green is nearer to a grey than to any
/// green of the cube, but what it says is *green*.
fn to_256(r: u8, g: u8, b: u8) -> u8 {
    let level = |v: u8| -> u8 {
        match v {
            0..48 => 0,
            48..115 => 1,
            _ => (v - 35) / 40,
        }
    };
    let value = |l: u8| if l == 0 { 0 } else { 55 + 40 * i32::from(l) };
    let (r, g, b) = (i32::from(r), i32::from(g), i32::from(b));
    let far = |x: i32, y: i32, z: i32| (x - r).pow(2) + (y - g).pow(2) + (z - b).pow(2);
    let (lr, lg, lb) = (level(r as u8), level(g as u8), level(b as u8));
    let grey = (((r + g + b) / 3 - 3).max(0) / 10).min(23);
    let gv = 8 + 10 * grey;
    let spread = r.max(g).max(b) - r.min(g).min(b);
    if spread < 32 && far(gv, gv, gv) < far(value(lr), value(lg), value(lb)) {
        232 + grey as u8
    } else {
        16 + 36 * lr + 6 * lg + lb
    }
}

/// Replaces everything outside ASCII. One place, at the end of a frame, so that no screen can forget it.
pub fn to_ascii(buf: &mut Buffer) {
    let mut out = String::new();
    for cell in &mut buf.content {
        if cell.symbol().is_ascii() {
            continue;
        }
        out.clear();
        let c = cell.symbol().chars().next().unwrap_or('?');
        let _ = write!(
            out,
            "{}",
            match c {
                '…' => '~',
                '·' | '▁' => '.',
                '›' | '▶' | '→' | '⏎' => '>',
                '←' => '<',
                '─' | '—' | '–' | '━' | '░' => '-',
                '│' | '┃' => '|',
                '┌' | '┐' | '└' | '┘' | '╭' | '╮' | '╰' | '╯' | '├' | '┤' | '┼' =>
                    '+',
                '▲' | '↑' => '^',
                '▼' | '↓' => 'v',
                '●' | '◆' | '✓' => '*',
                '○' => 'o',
                '✗' | '×' => 'x',
                '▂' | '▃' => ':',
                '▄' | '▅' => '=',
                '▆' | '▇' | '█' => '#',
                'µ' => 'u',
                _ => '?',
            }
        );
        cell.set_symbol(&out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tone_keeps_its_hue_in_256_colours() {
        for light in [false, true] {
            for tone in [Tone::Good, Tone::Busy, Tone::Warn, Tone::Bad] {
                let look = Look {
                    depth: Depth::Ansi256,
                    light,
                    ascii: false,
                };
                let colour = Theme { look }.tone(tone).fg;
                let Some(Color::Indexed(index)) = colour else {
                    panic!("{tone:?}: {colour:?}")
                };
                assert!((16..232).contains(&index), "{tone:?} is grey {index}");
            }
        }
    }

    fn look(flags: LookFlags, vars: &[(&str, &str)]) -> Look {
        let vars: Vec<(String, String)> = vars
            .iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
            .collect();
        Look::detect(flags, &move |name| {
            vars.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone())
        })
    }

    #[test]
    fn the_environment_decides_unless_a_flag_does() {
        let utf8 = ("LANG", "de_DE.UTF-8");
        let none = LookFlags::default();
        assert_eq!(
            look(none, &[utf8, ("TERM", "xterm-256color")]).depth,
            Depth::Ansi256
        );
        assert_eq!(
            look(none, &[("TERM", "xterm"), ("COLORTERM", "truecolor")]).depth,
            Depth::True
        );
        assert_eq!(look(none, &[("TERM", "linux")]).depth, Depth::Ansi16);
        assert_eq!(look(none, &[("TERM", "dumb")]).depth, Depth::None);
        assert_eq!(
            look(none, &[("TERM", "xterm-256color"), ("NO_COLOR", "1")]).depth,
            Depth::None
        );
        let always = LookFlags {
            color: Some(ColorFlag::Always),
            ..none
        };
        assert_eq!(
            look(always, &[("TERM", "dumb"), ("NO_COLOR", "1")]).depth,
            Depth::Ansi16
        );
        assert!(look(none, &[("LANG", "C")]).ascii);
        assert!(!look(none, &[utf8]).ascii);
        assert!(look(none, &[("LC_ALL", "POSIX"), utf8]).ascii);
        assert!(look(none, &[("COLORFGBG", "0;15")]).light);
        assert!(!look(none, &[("COLORFGBG", "15;0")]).light);
    }

    #[test]
    fn without_colour_every_worrying_tone_has_a_mark_and_no_role_has_a_colour() {
        let theme = Theme::new(Look {
            depth: Depth::None,
            ..Look::default()
        });
        for tone in [Tone::Busy, Tone::Warn, Tone::Bad] {
            assert!(!theme.mark(tone).trim().is_empty());
        }
        for role in [
            Role::Text,
            Role::Dim,
            Role::Accent,
            Role::Title,
            Role::Sorted,
            Role::Selected,
            Role::Marked,
            Role::Changed,
            Role::Band,
            Role::Production,
            Role::Badge,
            Role::Match,
            Role::Added,
            Role::Removed,
            Role::Disabled,
        ] {
            let style = theme.role(role);
            assert!(
                style.fg.is_none() && style.bg.is_none(),
                "{role:?} {style:?}"
            );
        }
    }

    #[test]
    fn the_cube_holds_its_own_corners() {
        assert_eq!(to_256(0, 0, 0), 16);
        assert_eq!(to_256(255, 255, 255), 231);
        assert_eq!(to_256(255, 0, 0), 196);
        assert_eq!(to_256(128, 128, 128), 244);
    }
}
