//! Names for the blocks of prompts, as [`Request::prefix`](super::Request::prefix) holds them.
//! Invariant: a block's name follows from all content up to its end, so equal names mean equal prefixes, up to a chance of
//! 2^-64 for each pair.

use super::PREFIX_BLOCK;

/// Two numbers made one that looks random; the order counts.
#[must_use]
pub const fn mix(a: u64, b: u64) -> u64 {
    // The finaliser of SplitMix64 (Steele, Lea, Flood 2014), which every bit of its input reaches.
    let mut mixed = a.rotate_left(29) ^ b.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// A prompt that grows at its end by pieces of known content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Tokens of a block.
    block: u32,
    names: Vec<u64>,
    /// What the last, unfinished block holds.
    part: u64,
    part_tokens: u32,
}

impl Default for Prompt {
    fn default() -> Self {
        Self::of_blocks(PREFIX_BLOCK)
    }
}

impl Prompt {
    /// An empty one that names blocks of so many tokens, at least 1.
    #[must_use]
    pub fn of_blocks(tokens: u32) -> Self {
        Self { block: tokens.max(1), names: Vec::new(), part: 0, part_tokens: 0 }
    }

    /// Adds `tokens` of the piece of text that `content` stands for, from its beginning.
    pub fn push(&mut self, content: u64, tokens: u32) {
        let mut done = 0;
        while done < tokens {
            let taken = (tokens - done).min(self.block - self.part_tokens);
            self.part = mix(mix(self.part, content), u64::from(done) << 32 | u64::from(taken));
            self.part_tokens += taken;
            done += taken;
            if self.part_tokens == self.block {
                self.names.push(self.part);
                // The part goes on from the name, so that the next name covers this block too.
                self.part_tokens = 0;
            }
        }
    }

    /// Its length.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.names.len() as u64 * u64::from(self.block) + u64::from(self.part_tokens)
    }

    /// The names of its whole blocks.
    #[must_use]
    pub fn names(&self) -> Box<[u64]> {
        self.names.clone().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(pieces: &[(u64, u32)]) -> Prompt {
        let mut prompt = Prompt::default();
        for (content, tokens) in pieces {
            prompt.push(*content, *tokens);
        }
        prompt
    }

    fn shared(a: &Prompt, b: &Prompt) -> usize {
        a.names.iter().zip(&b.names).take_while(|(a, b)| a == b).count()
    }

    #[test]
    fn prompts_share_the_whole_blocks_that_are_equal() {
        /// Contents and their tokens.
        type Pieces = &'static [(u64, u32)];
        let cases: [(Pieces, Pieces, usize); 6] = [
            // A system prompt of 6,000 tokens has 11 whole blocks; the twelfth holds some of the question.
            (&[(1, 6000), (2, 1200)], &[(1, 6000), (3, 1200)], 11),
            (&[(1, 6000), (2, 1200)], &[(1, 6000), (2, 1200)], 14),
            (&[(1, 6000), (2, 1200)], &[(1, 6000), (2, 1200), (7, 300), (8, 100)], 14),
            (&[(1, 511), (2, 513)], &[(1, 512), (2, 512)], 0),
            (&[(1, 512), (2, 512)], &[(2, 512), (1, 512)], 0),
            // The second block is equal, but not what comes before.
            (&[(1, 512), (2, 512)], &[(3, 512), (2, 512)], 0),
        ];
        for (a, b, blocks) in cases {
            assert_eq!(shared(&prompt(a), &prompt(b)), blocks, "{a:?} and {b:?}");
        }
        assert_eq!(prompt(&[(1, 6000), (2, 1200)]).tokens(), 7200);
        assert_eq!(prompt(&[(1, 6000), (2, 1200)]).names().len(), 14);
    }

    #[test]
    fn no_name_is_met_twice() {
        let mut names = std::collections::BTreeSet::new();
        for content in 0..2000 {
            names.extend(prompt(&[(content, 5 * PREFIX_BLOCK)]).names());
        }
        assert_eq!(names.len(), 10_000);
    }
}
