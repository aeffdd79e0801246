//! Where an action makes sense, and under which heading it stands.

/// Where an action makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Context {
    /// The overview.
    Overview,
    /// A list.
    List,
    /// A detail view.
    Detail,
}

impl Context {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Overview, Self::List, Self::Detail];
}

/// A group of the help page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    /// Where to.
    Go,
    /// Around a page.
    Move,
    /// Looking.
    Look,
    /// Changing the cluster, always through a plan.
    Act,
    /// The console itself.
    Console,
}

impl Group {
    /// In the order of the help page.
    pub const ALL: [Self; 5] = [Self::Look, Self::Act, Self::Go, Self::Move, Self::Console];

    /// Its heading.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Go => "Go",
            Self::Move => "Move",
            Self::Look => "Look",
            Self::Act => "Act (always plan first)",
            Self::Console => "Console",
        }
    }
}
