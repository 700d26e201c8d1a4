//! Several migrations of one container at once move it to exactly one host.

use std::time::Duration;

use super::rivals::{self, Interference};
use crate::ensure;
use crate::error::Result;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("promise-two-moves-of-one-container", &["promise"], two).exclusive().limit(240),
    Case::new("promise-four-moves-of-one-container", &["promise"], four).exclusive().limit(300),
    Case::new("promise-two-moves-and-recover-beside", &["promise"], beside_recover)
        .exclusive()
        .limit(240),
    Case::new("promise-two-moves-and-one-is-killed", &["promise"], one_killed)
        .exclusive()
        .limit(300),
];

const fn ms(time: u64) -> Duration {
    Duration::from_millis(time)
}

/// Runs rounds with these delays of the migrations. Reports all problems.
fn rounds(context: &Context, rounds: &[(&[Duration], Interference)]) -> Result<()> {
    let count = rounds.first().map_or(2, |(after, _)| after.len());
    let lab = context.lab(&rivals::hosts(count))?;
    let mut problems = Vec::new();
    for (number, (after, interference)) in rounds.iter().enumerate() {
        let round = rivals::round(&lab, after, *interference)?;
        context.remark(format!("{:?} {:?}", round.exits, round.runs_on.unwrap_or_default()));
        problems.extend(round.problems.iter().map(|text| format!("round {number}: {text}")));
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

fn two(context: &Context) -> Result<()> {
    let all = [
        (&[ms(0), ms(0)][..], Interference::Nothing),
        (&[ms(0), ms(150)], Interference::Nothing),
        (&[ms(0), ms(500)], Interference::Nothing),
        (&[ms(900), ms(0)], Interference::Nothing),
    ];
    rounds(context, &all)
}

fn four(context: &Context) -> Result<()> {
    let all = [
        (&[ms(0), ms(0), ms(0), ms(0)][..], Interference::Nothing),
        (&[ms(0), ms(200), ms(500), ms(900)], Interference::Nothing),
        (&[ms(600), ms(400), ms(200), ms(0)], Interference::Nothing),
    ];
    rounds(context, &all)
}

fn beside_recover(context: &Context) -> Result<()> {
    let all = [
        (&[ms(0), ms(0)][..], Interference::Recover),
        (&[ms(0), ms(400)], Interference::Recover),
        (&[ms(300), ms(0)], Interference::Recover),
    ];
    rounds(context, &all)
}

fn one_killed(context: &Context) -> Result<()> {
    let all = [
        (&[ms(0), ms(0)][..], Interference::Kill(0, ms(300))),
        (&[ms(0), ms(100)], Interference::Kill(1, ms(600))),
        (&[ms(0), ms(300)], Interference::Kill(0, ms(800))),
    ];
    rounds(context, &all)
}
