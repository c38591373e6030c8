//! Webhooks that answer when chance says so, and what they were told.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use aios::notify::{Answer, Letter, Notifier};

use super::rng::Rng;
use super::world::World;

/// A letter that is on its way.
#[derive(Debug)]
pub(crate) struct OnItsWay {
    pub(crate) device: usize,
    pub(crate) life: u64,
    pub(crate) answered_at: Duration,
    answer: Answer,
}

pub(crate) struct SimNotifier {
    pub(crate) world: Rc<World>,
    pub(crate) device: usize,
    pub(crate) life: u64,
    pub(crate) dead: Rc<Cell<bool>>,
    pub(crate) chance: Rng,
}

impl SimNotifier {
    fn is_mine(&self, letter: &OnItsWay) -> bool {
        letter.device == self.device && letter.life == self.life
    }
}

impl Notifier for SimNotifier {
    fn has_room(&self, _url: &str) -> bool {
        self.world.letters.borrow().iter().filter(|letter| self.is_mine(letter)).count() < 2
    }

    fn tell(&mut self, letter: Letter) {
        if self.dead.get() {
            return;
        }
        self.world.check.borrow_mut().told(&letter);
        let takes = Duration::from_millis(*self.chance.pick(&[0, 5, 300, 5_000, 18_000]));
        let outcome = if self.chance.one_in(4) { Err("it does not answer".to_owned()) } else { Ok(()) };
        self.world.letters.borrow_mut().push(OnItsWay {
            device: self.device,
            life: self.life,
            answered_at: self.world.now.get() + takes,
            answer: Answer { job: letter.job, news: letter.news, outcome },
        });
    }

    fn take_answers(&mut self) -> Vec<Answer> {
        let now = self.world.now.get();
        if self.dead.get() {
            return Vec::new();
        }
        let mut letters = self.world.letters.borrow_mut();
        let is_over = |letter: &mut OnItsWay| self.is_mine(letter) && letter.answered_at <= now;
        letters.extract_if(.., is_over).map(|letter| letter.answer).collect()
    }
}
