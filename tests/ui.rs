//! The console without a terminal, over the captured cluster: what keys do, what the screen shows, and that nothing that
//! can be pressed, clicked or resized makes it fail.

#[path = "console/mod.rs"]
mod console;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use console::{BARE, Console, DARK, NOW, catalog, error, keyspace, parse, place};
use crossterm::event::{Event as Term, KeyModifiers, MouseButton, MouseEvent, MouseEventKind};
use falconer::engine::handle::{Conn, Notice, Place, TO_WRITE};
use falconer::engine::ids::{MetaRev, UnixMs};
use falconer::engine::meta::{Event, KeyValue};
use falconer::engine::model::resource::{Kind, RowId, Scope};
use falconer::ui::app::{App, Effect, Msg, update};
use falconer::ui::keymap::ACTIONS;
use falconer::ui::nav::Place as Page;
use falconer::ui::overlay::Overlay;
use falconer::ui::picture;
use proptest::prelude::*;

fn lab() -> Console {
    Console::lab((120, 40), DARK)
}

fn list(kind: Kind) -> Page {
    Page::List(kind, Scope::default())
}

fn at(console: &Console) -> &Page {
    &console.app.history.page().place
}

// ---- keys ----

#[test]
fn number_keys_lead_to_lists_and_back_returns() {
    let mut c = lab();
    for (key, kind) in [
        ("2", Kind::Collections),
        ("3", Kind::Segments),
        ("4", Kind::Channels),
        ("5", Kind::Indexes),
        ("6", Kind::Snapshots),
        ("7", Kind::Jobs),
        ("8", Kind::Sessions),
        ("9", Kind::Keys),
        ("0", Kind::Databases),
    ] {
        c.press(key);
        assert_eq!(at(&c), &list(kind), "{key}");
    }
    c.press("<esc>");
    assert_eq!(at(&c), &list(Kind::Keys));
    c.press("[[");
    assert_eq!(at(&c), &list(Kind::Jobs));
    c.press("]");
    assert_eq!(at(&c), &list(Kind::Sessions));
    c.press("1");
    assert_eq!(at(&c), &Page::Overview);
}

#[test]
fn enter_drills_from_a_database_to_a_raw_value_and_the_crumbs_tell_the_way() {
    let mut c = lab();
    c.press("0");
    assert!(c.screen().contains("analytics"), "{}", c.screen());
    c.press("<enter>");
    let Page::List(Kind::Collections, scope) = at(&c).clone() else {
        panic!("{:?}", at(&c));
    };
    assert!(scope.database.is_some());
    c.press("<enter>");
    assert!(matches!(at(&c), Page::Detail(Kind::Collections, _)));
    let screen = c.screen();
    assert!(
        screen.contains("Databases › ") || screen.contains("Databases ›"),
        "{screen}"
    );
    assert!(screen.contains("segments ("), "{screen}");
    // The last section lists the keys behind the collection; its first key opens with its value decoded.
    c.press("<end><enter>");
    assert!(
        matches!(at(&c), Page::Detail(Kind::Keys, RowId::Key(_))),
        "{:?}",
        at(&c)
    );
    let screen = c.screen();
    assert!(screen.contains("Value"), "{screen}");
    assert!(
        c.asked.iter().any(|r| r.starts_with("Raw(")),
        "{:?}",
        c.asked
    );
}

#[test]
fn a_raw_value_is_shown_decoded_and_as_bytes() {
    let mut c = lab();
    c.press("9/datacoord-meta/s/<enter><enter>");
    let screen = c.screen();
    assert!(
        screen.contains("insert_channel") || screen.contains("insertChannel"),
        "{screen}"
    );
    c.press("<end>");
    assert!(
        c.screen().contains("Bytes") || c.screen().contains("0000"),
        "{}",
        c.screen()
    );
}

#[test]
fn a_filter_narrows_inverts_and_goes_away() {
    let mut c = lab();
    c.press("3");
    let all = c.app.history.page().table.len();
    c.press("/dropped<enter>");
    let dropped = c.app.history.page().table.len();
    assert!(dropped > 0 && dropped < all);
    assert!(c.screen().contains(&format!("of {all}")), "{}", c.screen());
    c.press("/<c-u>!dropped<enter>");
    assert_eq!(c.app.history.page().table.len(), all - dropped);
    c.press("<esc>");
    assert_eq!(c.app.history.page().table.len(), all);
    // Esc while typing brings back what was there.
    c.press("/zzz");
    assert_eq!(c.app.history.page().table.len(), 0);
    assert!(c.screen().contains("None of"), "{}", c.screen());
    c.press("<esc>");
    assert_eq!(c.app.history.page().table.len(), all);
    assert_eq!(at(&c), &list(Kind::Segments));
}

#[test]
fn sorting_cycles_reverses_and_shows_itself() {
    let mut c = lab();
    c.press("2");
    let ids = |c: &Console| {
        c.app
            .history
            .page()
            .table
            .rows
            .as_ref()
            .unwrap()
            .ids
            .to_vec()
    };
    let first = ids(&c);
    c.press("S");
    assert!(c.screen().contains('▼'));
    let names: Vec<RowId> = ids(&c);
    assert_ne!(first, names);
    c.press("sss");
    assert_eq!(c.app.history.page().table.sort, (3, false));
    assert!(c.screen().contains("ROWS ▲"), "{}", c.screen());
}

#[test]
fn the_cursor_follows_its_row_when_rows_move() {
    let mut c = lab();
    c.press("3<end>");
    let chosen = c.app.history.page().table.selected.clone().unwrap();
    c.press("S");
    let table = &c.app.history.page().table;
    assert_eq!(table.selected.as_ref(), Some(&chosen));
    assert_eq!(table.cursor, 0);
    c.press("s");
    assert_eq!(c.app.history.page().table.selected.as_ref(), Some(&chosen));
}

#[test]
fn marks_are_copied_together_and_a_page_becomes_markdown() {
    let mut c = lab();
    c.press("2<space><space>y");
    assert_eq!(c.copied.last().unwrap().lines().count(), 2);
    c.press("Y");
    let page = c.copied.last().unwrap().clone();
    assert!(
        page.contains("| NAME |") && page.contains("staging"),
        "{page}"
    );
    assert_eq!(
        page.lines().filter(|l| l.starts_with("| ")).count(),
        3,
        "{page}"
    );
    c.press("uY");
    let page = c.copied.last().unwrap();
    assert_eq!(
        page.lines().filter(|l| l.starts_with("| ")).count(),
        10,
        "{page}"
    );
}

#[test]
fn the_palette_finds_actions_names_and_ids() {
    let mut c = lab();
    c.press(":segm<enter>");
    assert_eq!(at(&c), &list(Kind::Segments));
    let id = c.app.history.page().table.selected.clone().unwrap();
    c.press(":metrics<enter>");
    assert!(
        matches!(at(&c), Page::Detail(Kind::Collections, _)),
        "{:?}",
        at(&c)
    );
    c.press(&format!(":{}<enter>", id.text()));
    assert_eq!(at(&c), &Page::Detail(Kind::Segments, id));
    // What was chosen last stands first.
    c.press(":");
    let Some(Overlay::Palette(palette)) = &c.app.overlay else {
        panic!("no palette");
    };
    assert_eq!(
        palette.chosen().unwrap().name,
        "metrics"
            .to_owned()
            .min(palette.chosen().unwrap().name.clone())
    );
    c.press("<esc>");
    assert!(c.app.overlay.is_none());
}

#[test]
fn faults_only_shows_rows_that_are_not_well() {
    let mut c = lab();
    c.press("2");
    let all = c.app.history.page().table.len();
    c.press("!");
    assert!(c.app.history.page().table.len() < all);
    assert!(c.screen().contains("only faults"));
    c.press("<esc>");
    assert_eq!(c.app.history.page().table.len(), all);
}

// ---- writing ----

#[test]
fn a_snapshot_goes_through_form_plan_and_confirmation() {
    let mut c = lab();
    c.press("2c");
    assert!(matches!(c.app.overlay, Some(Overlay::Form(_))));
    c.press("<c-u>nightly<enter>before the upgrade<enter><c-u>2h<enter>");
    assert!(
        c.asked.iter().any(|r| r.contains("CreateSnapshot")
            && r.contains("nightly")
            && r.contains("before the upgrade")
            && r.contains("7200")),
        "{:?}",
        c.asked
    );
    let screen = c.screen();
    assert!(screen.contains("write the PENDING record"), "{screen}");
    assert!(screen.contains("newer than the boundary"), "{screen}");
    c.press("y");
    assert!(
        !c.asked.iter().any(|r| r.starts_with("Apply")),
        "a letter confirmed a plan"
    );
    c.press("<enter>");
    assert!(
        c.asked.iter().any(|r| r.starts_with("Apply")),
        "{:?}",
        c.asked
    );
    assert!(c.app.overlay.is_none());
    assert!(
        matches!(at(&c), Page::Detail(Kind::Jobs, _)),
        "{:?}",
        at(&c)
    );
    assert!(c.screen().contains("copying files"), "{}", c.screen());
}

#[test]
fn danger_decides_how_heavy_the_confirmation_is() {
    let mut c = lab();
    // Cancelling a job: one letter.
    c.press("7x<enter>");
    assert!(!c.asked.iter().any(|r| r.starts_with("Apply")));
    c.press("y");
    assert!(
        c.asked
            .iter()
            .any(|r| r.starts_with("Apply") && r.contains("\"y\"")),
        "{:?}",
        c.asked
    );
    // Dropping: the name, typed whole.
    let mut c = lab();
    let plan = console::plan(falconer::engine::plan::Intent::DropSnapshot { snapshot: 7.into() });
    c.app.overlay = Some(Overlay::Review(Box::new(
        falconer::ui::overlay::review::Review::new(Arc::new(plan), None),
    )));
    for wrong in ["<enter>", "y<enter>", "<c-u>nightl<enter>"] {
        c.press(wrong);
        assert!(
            !c.asked.iter().any(|r| r.starts_with("Apply")),
            "{wrong} confirmed"
        );
    }
    assert!(
        c.screen().contains("Type nightly to confirm"),
        "{}",
        c.screen()
    );
    c.press("y<enter>");
    assert!(
        c.asked
            .iter()
            .any(|r| r.starts_with("Apply") && r.contains("nightly")),
        "{:?}",
        c.asked
    );
}

#[test]
fn a_snapshot_is_pinned_unpinned_by_number_and_verified() {
    use falconer::engine::format::pb::data::SnapshotInfo;
    use prost::Message;
    let mut keys = keyspace();
    let info = SnapshotInfo {
        name: "nightly".into(),
        id: 9,
        collection_id: 445,
        state: 2,
        pin_ids: vec![41, 42],
        pin_expire_at_ms: [(41, NOW.0 + 7_200_000)].into(),
        ..SnapshotInfo::default()
    };
    keys.push(KeyValue {
        key: "by-dev/meta/datacoord-meta/snapshot/445/9".into(),
        value: info.encode_to_vec().into(),
        create_rev: MetaRev(9_000),
        mod_rev: MetaRev(9_000),
        version: 1,
        lease: 0,
    });
    let mut c = lab();
    c.feed(Msg::Catalog(Arc::new(catalog(&keys))));
    let asked = |c: &Console, parts: &[&str]| {
        let last = c.asked.iter().rfind(|r| r.starts_with("Plan")).unwrap();
        assert!(parts.iter().all(|p| last.contains(p)), "{last}");
    };
    c.press("6p<c-u>7d<enter>anna<enter>audit<enter>");
    asked(&c, &["PinSnapshot", "604800", "anna", "audit"]);
    c.press("<esc>P");
    let screen = c.screen();
    assert!(screen.contains("1  41  until 2026-"), "{screen}");
    assert!(screen.contains("2  42  never expires"), "{screen}");
    c.press("<c-u>2<enter>");
    asked(&c, &["UnpinSnapshot", "PinId(42)"]);
    c.press("<esc>V");
    asked(&c, &["VerifySnapshot", "deep: true"]);
    // Its page is asked about again when its record has moved.
    c.press("<esc><enter>");
    let details = |c: &Console| {
        c.asked
            .iter()
            .filter(|r| r.starts_with("SnapshotDetail"))
            .count()
    };
    assert_eq!(details(&c), 1);
    if let Some(kv) = keys.last_mut() {
        kv.mod_rev = MetaRev(9_001);
    }
    c.feed(Msg::Catalog(Arc::new(catalog(&keys))));
    assert_eq!(details(&c), 2);
}

#[test]
fn a_plan_with_a_failed_check_cannot_be_applied_and_a_refusal_stays_on_screen() {
    let mut c = lab();
    let mut plan = console::plan(falconer::engine::plan::Intent::Demo);
    plan.checks[0].failed = Some("mixcoord is registered".to_owned());
    c.app.overlay = Some(Overlay::Review(Box::new(
        falconer::ui::overlay::review::Review::new(Arc::new(plan), None),
    )));
    c.press("<enter>y");
    assert!(c.asked.is_empty());
    assert!(
        c.screen().contains("1 check does not hold"),
        "{}",
        c.screen()
    );
    assert!(c.screen().contains("mixcoord is registered"));

    let mut c = lab();
    c.refuse_apply = Some(error("key datacoord-meta/snapshot/445/446 has moved"));
    c.press("2c<enter><enter><enter><enter>");
    assert!(c.screen().contains("has moved"), "{}", c.screen());
    assert!(matches!(c.app.overlay, Some(Overlay::Review(_))));
    let mut c = lab();
    c.refuse_plan = Some(error("the name is taken"));
    c.press("2c<enter><enter><enter>");
    assert!(
        c.screen().contains("the name is taken; plan again"),
        "{}",
        c.screen()
    );
}

#[test]
fn read_only_plans_and_never_applies() {
    let mut c = Console::empty((120, 40), DARK, place(Some("a coordinator is alive")));
    c.feed(Msg::Catalog(Arc::new(catalog(&keyspace()))));
    c.press("3g");
    assert!(
        c.asked.iter().any(|r| r.starts_with("Plan(Gc")),
        "{:?}",
        c.asked
    );
    assert!(matches!(c.app.overlay, Some(Overlay::Review(_))));
    let screen = c.screen();
    assert!(screen.contains("READ-ONLY"), "{screen}");
    assert!(
        screen.contains("only shown, read-only: a coordinator is alive"),
        "{screen}"
    );
    for key in ["y", "<enter>", "yes<enter>"] {
        c.press(key);
        assert!(
            !c.asked.iter().any(|r| r.starts_with("Apply")),
            "{key} applied: {:?}",
            c.asked
        );
    }
    assert!(!c.screen().contains("sent to the engine"), "{}", c.screen());
    c.press("<esc>?");
    assert!(c.screen().contains("not now, read-only"), "{}", c.screen());
}

#[test]
fn knobs_of_a_running_job_ask_the_engine_and_those_of_an_ended_one_do_not() {
    let mut c = lab();
    c.press("7/copying<enter>");
    c.press("<esc>");
    let select = |c: &mut Console, state: &str| {
        c.press(&format!("/{state}<enter>"));
        assert_eq!(c.app.history.page().table.len(), 1, "{}", c.screen());
    };
    select(&mut c, "hello_again");
    c.press("+-<lt>>");
    let asked = c.asked.join("\n");
    assert!(
        asked.contains("Parallel(JobId(450000000000000101), 32)"),
        "{asked}"
    );
    assert!(
        asked.contains("Parallel(JobId(450000000000000101), 16)"),
        "{asked}"
    );
    assert!(
        asked.contains("Throttle(JobId(450000000000000101), Some("),
        "{asked}"
    );
    let before = c.asked.len();
    c.press("<esc>");
    select(&mut c, "books_old");
    c.press("+x");
    assert_eq!(c.asked.len(), before);
    assert!(c.screen().contains("this job has ended"), "{}", c.screen());
}

// ---- what is shown ----

#[test]
fn an_empty_embedded_store_welcomes_and_offers_the_demo() {
    let home = Arc::new(Place {
        profile: "embedded".to_owned(),
        attach: "embedded",
        meta: "memory".to_owned(),
        bucket: "memory".to_owned(),
        read_only: None,
        to_write: TO_WRITE,
    });
    let mut c = Console::empty((80, 24), DARK, home);
    c.feed(Msg::Conn(Conn::Live {
        rev: MetaRev(1),
        heard: NOW,
    }));
    assert!(c.screen().contains("An empty store"), "{}", c.screen());
    assert!(
        c.screen().contains("build a small living demo"),
        "{}",
        c.screen()
    );
    c.press("D");
    assert!(c.asked.iter().any(|r| r.contains("Demo")), "{:?}", c.asked);
}

#[test]
fn stale_says_since_when_and_why_on_the_narrowest_screen_too() {
    let mut c = Console::lab((80, 24), BARE);
    c.feed(Msg::Conn(Conn::Stale {
        since: UnixMs(1_700_000_000_000),
        why: error("etcd does not answer"),
        next: Duration::from_secs(2),
    }));
    let screen = c.screen();
    assert!(
        screen.contains("STALE since 22:13:20 because etcd does not answer"),
        "{screen}"
    );
}

#[test]
fn a_changed_row_is_tinted_for_some_seconds_and_the_rate_counts_it() {
    let keys = keyspace();
    let mut c = Console::lab((120, 40), DARK);
    c.press("3");
    let before = c.styled();
    // Not the row under the cursor, whose colour hides the tint.
    let first = c.app.history.page().table.rows.as_ref().unwrap().ids[1].clone();
    let mut next = catalog(&keys);
    let key: &KeyValue = keys
        .iter()
        .find(|k| {
            k.key.text().contains("datacoord-meta/s/") && k.key.text().ends_with(&first.text())
        })
        .unwrap();
    let rev = MetaRev(c.app.catalog.rev.0 + 5);
    let changed = KeyValue {
        mod_rev: rev,
        ..key.clone()
    };
    next.apply(
        &falconer::engine::format::keys::Roots::default(),
        &[Event::Put(changed)],
    );
    c.feed(Msg::Catalog(Arc::new(next)));
    let tinted = c.styled();
    assert_ne!(before, tinted);
    assert!(tinted.contains("48,2,46,54,34"), "no tint: {tinted}");
    assert!(c.screen().contains("1.0/s"), "{}", c.screen());
    c.now = UnixMs(c.now.0 + 5_000);
    c.feed(Msg::Tick);
    assert!(!c.styled().contains("48,2,46,54,34"));
}

#[test]
fn notices_come_and_go() {
    let mut c = lab();
    c.feed(Msg::Notice(Notice {
        at: NOW,
        bad: false,
        text: "restore of nightly is verified".to_owned(),
    }));
    assert!(c.screen().contains("restore of nightly is verified"));
    c.now = UnixMs(c.now.0 + 60_000);
    c.feed(Msg::Tick);
    assert!(!c.screen().contains("restore of nightly is verified"));
}

#[test]
fn help_names_every_key_of_the_page_and_every_column() {
    let mut c = Console::lab((140, 200), DARK);
    c.press("3?");
    let screen = c.screen();
    for entry in ACTIONS {
        if entry
            .contexts
            .contains(&falconer::ui::keymap::Context::List)
        {
            assert!(screen.contains(entry.title), "{} is not in help", entry.id);
        }
    }
    for column in Kind::Segments.spec().columns {
        assert!(
            screen.contains(column.title),
            "{} is not in help",
            column.title
        );
    }
}

#[test]
fn a_screen_too_small_says_so() {
    for size in [(1, 1), (2, 1), (39, 24), (80, 7), (2, 60)] {
        let mut c = Console::lab(size, DARK);
        let expected = if size.0 < 25 { "f" } else { "falconer needs" };
        let screen = c.screen();
        assert!(
            screen.contains(expected) || size.0 < 3,
            "{size:?}: {screen}"
        );
        c.press("3<down>/x<enter>:?<esc>q");
    }
}

#[test]
fn ascii_means_ascii() {
    for keys in [
        "",
        "2",
        "3",
        "7",
        "7<enter>",
        "?",
        ":",
        "9<enter>",
        "2c",
        "2c<enter><enter><enter>",
    ] {
        let mut c = Console::lab((120, 40), BARE);
        c.press(keys);
        let screen = c.screen();
        assert!(screen.is_ascii(), "{keys}: {screen}");
    }
}

#[test]
fn without_colour_a_state_keeps_its_mark() {
    let mut c = Console::lab((160, 40), BARE);
    c.press("7");
    let screen = c.screen();
    assert!(
        screen.contains("x failed") || screen.contains("x Failed"),
        "{screen}"
    );
}

#[test]
fn big_lists_are_computed_elsewhere_and_the_last_question_wins() {
    // More keys than are computed at once.
    let mut keys = keyspace();
    let sample = keys[0].clone();
    for i in 0..25_000 {
        let mut more = sample.clone();
        more.key = format!("by-dev/meta/unknown/{i:06}").into();
        keys.push(more);
    }
    let mut app = App::new(place(None), DARK, (120, 40));
    update(&mut app, Msg::Catalog(Arc::new(catalog(&keys))), NOW);
    let conn = Conn::Static { rev: MetaRev(1) };
    update(&mut app, Msg::Conn(conn), NOW);
    let mut orders = Vec::new();
    for key in parse("9/00012<enter>") {
        for effect in update(&mut app, Msg::Term(Term::Key(key)), NOW) {
            if let Effect::Compute(order) = effect {
                orders.push(order);
            }
        }
    }
    assert!(orders.len() > 1, "{} orders", orders.len());
    assert!(!app.is_idle());
    let (last, older) = orders.split_last().unwrap();
    assert!(
        older.iter().all(|o| o.cancel.load(Ordering::Relaxed)),
        "an old question goes on"
    );
    assert!(!last.cancel.load(Ordering::Relaxed));
    for order in older {
        let rows = falconer::ui::rows::compute(&order.world, &order.query, &AtomicBool::new(false));
        update(&mut app, Msg::Rows(order.id, rows), NOW);
        assert!(!app.is_idle(), "an old answer was taken");
    }
    let rows = falconer::ui::rows::compute(&last.world, &last.query, &last.cancel);
    update(&mut app, Msg::Rows(last.id, rows), NOW);
    assert!(app.is_idle());
    assert_eq!(app.history.page().table.len(), 11);
}

#[test]
fn a_dump_without_ages_needs_no_clock() {
    let mut c = lab();
    c.feed(Msg::Jobs(Arc::default()));
    c.feed(Msg::Conn(Conn::Static { rev: MetaRev(1) }));
    c.press("9");
    c.now = UnixMs(c.now.0 + 60_000);
    c.feed(Msg::Tick);
    assert_eq!(c.app.tick(), None, "an idle console must cost nothing");
    c.live();
    assert!(c.app.tick().is_some());
}

#[test]
fn the_mouse_selects_opens_sorts_and_scrolls() {
    let mut c = lab();
    c.press("3");
    let click = |c: &mut Console, kind, column, row| {
        c.feed(Msg::Term(Term::Mouse(MouseEvent {
            kind,
            column,
            row,
            modifiers: KeyModifiers::NONE,
        })));
    };
    let left = MouseEventKind::Down(MouseButton::Left);
    click(&mut c, left, 10, 6);
    assert_eq!(c.app.history.page().table.cursor, 2);
    click(&mut c, MouseEventKind::ScrollDown, 10, 10);
    assert_eq!(c.app.history.page().table.top, 3);
    click(&mut c, left, 30, 3);
    assert_eq!(c.app.history.page().table.sort.0, 1);
    click(&mut c, left, 10, 6);
    click(&mut c, left, 10, 6);
    assert!(matches!(at(&c), Page::Detail(Kind::Segments, _)));
    click(&mut c, MouseEventKind::Down(MouseButton::Right), 1, 1);
    assert_eq!(at(&c), &list(Kind::Segments));
}

// ---- pictures ----

#[test]
fn screens_look_as_they_did() {
    for (name, size) in [
        ("80x24", (80, 24)),
        ("120x40", (120, 40)),
        ("200x60", (200, 60)),
    ] {
        for (page, keys) in [
            ("overview", ""),
            ("collections", "2"),
            ("segments", "3/flushed<enter>"),
            ("jobs", "7"),
            ("detail", "2<enter>"),
        ] {
            let mut c = Console::lab(size, DARK);
            c.press(keys);
            insta::assert_snapshot!(format!("{page}-{name}-colour"), c.styled());
            let mut c = Console::lab(size, BARE);
            c.press(keys);
            insta::assert_snapshot!(format!("{page}-{name}-bare"), c.screen());
        }
    }
}

#[test]
fn overlays_look_as_they_did() {
    for (page, keys) in [
        ("help", "3?"),
        ("palette", ":sna"),
        ("form", "2c"),
        ("review", "2c<enter><enter><enter>"),
        ("key", "9/datacoord-meta/s/<enter><enter>"),
        ("channels", "4"),
        ("snapshots-empty", "6"),
        ("job", "7<enter>"),
        ("doctor", "H"),
    ] {
        let mut c = Console::lab((100, 30), DARK);
        c.press(keys);
        insta::assert_snapshot!(page, c.screen());
    }
}

#[test]
fn the_picture_of_the_readme_is_the_real_screen() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/screen.svg");
    let committed = std::fs::read_to_string(file).expect("assets/screen.svg");
    assert!(
        committed == console::picture_svg(),
        "assets/screen.svg is old: cargo run --example screen -- --svg > assets/screen.svg"
    );
}

// ---- anything may happen ----

#[derive(Clone, Debug)]
enum Step {
    Key(crossterm::event::KeyEvent),
    Mouse(u8, u16, u16),
    Resize(u16, u16),
    Paste(String),
    Tick,
    Lose,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let mut keys = vec![];
    for entry in ACTIONS {
        for key in entry.keys {
            let modifiers = if key.ctrl {
                KeyModifiers::CONTROL
            } else {
                KeyModifiers::NONE
            };
            keys.push(crossterm::event::KeyEvent::new(key.code, modifiers));
        }
    }
    keys.extend(parse(
        "abyz!~é日<enter><esc><bs><tab><s-tab><c-u><c-w><c-n>",
    ));
    // Keys that leave are no fun here.
    keys.retain(|k| !matches!(k.code, crossterm::event::KeyCode::Char('q')));
    let size = prop_oneof![
        3 => (1u16..200, 1u16..60),
        1 => (1u16..45, 1u16..12),
    ];
    let step = prop_oneof![
        12 => prop::sample::select(keys).prop_map(Step::Key),
        2 => (0u8..5, 0u16..220, 0u16..70).prop_map(|(k, x, y)| Step::Mouse(k, x, y)),
        1 => size.prop_map(|(w, h)| Step::Resize(w, h)),
        1 => ".{0,12}".prop_map(Step::Paste),
        1 => Just(Step::Tick),
        1 => Just(Step::Lose),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn nothing_that_can_happen_makes_it_fail(
        start in (1u16..140, 1u16..50),
        bare in any::<bool>(),
        steps in steps(),
    ) {
        let mut c = Console::lab(start, if bare { BARE } else { DARK });
        for step in steps {
            match step {
                Step::Key(key) => c.feed(Msg::Term(Term::Key(key))),
                Step::Mouse(kind, column, row) => c.feed(Msg::Term(Term::Mouse(MouseEvent {
                    kind: match kind {
                        0 => MouseEventKind::ScrollDown,
                        1 => MouseEventKind::ScrollUp,
                        2 => MouseEventKind::Down(MouseButton::Right),
                        3 => MouseEventKind::Moved,
                        _ => MouseEventKind::Down(MouseButton::Left),
                    },
                    column,
                    row,
                    modifiers: KeyModifiers::NONE,
                }))),
                Step::Resize(w, h) => c.feed(Msg::Term(Term::Resize(w, h))),
                Step::Paste(text) => c.feed(Msg::Term(Term::Paste(text))),
                Step::Tick => {
                    c.now = UnixMs(c.now.0 + 1_000);
                    c.feed(Msg::Tick);
                }
                // Everything is deleted under the console, then comes back.
                Step::Lose => {
                    let full = Arc::clone(&c.app.catalog);
                    c.feed(Msg::Catalog(Arc::default()));
                    let _ = picture::render(&c.app, c.now);
                    c.feed(Msg::Catalog(full));
                }
            }
            let buffer = picture::render(&c.app, c.now);
            prop_assert_eq!(buffer.area().width, c.app.size.0);
            if bare {
                prop_assert!(picture::plain(&buffer).is_ascii());
            }
        }
    }
}
