"""Themes and texts of the composer: objects that belong together, and headlines and lines about them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Theme:
    """A subject a design can have.

    Attributes:
        objects: names of vendored objects, without suffix.
        titles: headlines of one to four words that suit any of the objects.
    """

    objects: tuple[str, ...]
    titles: tuple[str, ...]


def _theme(objects: str, titles: str) -> Theme:
    return Theme(tuple(sorted(objects.split())), tuple(title.strip() for title in titles.split("|")))


THEMES: dict[str, Theme] = {
    "fruit": _theme(
        "avocado banana blueberries cherries coconut grapes green_apple kiwifruit lemon mango peach pear pineapple "
        "red_apple strawberry tangerine watermelon",
        "Fresh Fruit|Juicy Days|Summer Squeeze|Pick of the Day|Vitamin Boost|Sweet & Ripe|Farm Fresh|"
        "Pure Juice|Fruit Club",
    ),
    "vegetables": _theme(
        "aubergine bell_pepper broccoli carrot cucumber ear_of_maize green_salad hot_pepper leafy_green "
        "mushroom tomato",
        "Go Green|Eat Well|Garden Market|Veggie Week|Farm to Table|Crisp & Fresh|Plant Power|Healthy Habits|Organic",
    ),
    "meals": _theme(
        "bread cheese_wedge croissant dumpling french_fries hamburger hot_dog pancakes popcorn pretzel sandwich "
        "slice_of_pizza steaming_bowl sushi taco",
        "Street Food|Lunch Time|Taste It|Brunch Club|Hot & Fresh|Food Festival|Dinner for Two|"
        "Snack Attack|Open Kitchen",
    ),
    "sweets": _theme(
        "birthday_cake candy chocolate_bar cookie cupcake doughnut honey_pot ice_cream lollipop "
        "shortcake soft_ice_cream",
        "Sweet Treats|Sugar Rush|Dessert Bar|Bake Sale|Treat Yourself|Sweet Tooth|Candy Land|Freshly Baked|Yum",
    ),
    "drinks": _theme(
        "beverage_box bubble_tea cocktail_glass cup_with_straw hot_beverage teapot tropical_drink",
        "Happy Hour|Tea Time|Coffee Break|Cool Drinks|Take a Sip|Cheers|Morning Brew|Stay Fresh|Chill Out",
    ),
    "animals": _theme(
        "baby_chick bear_face cat_face cow_face dog_face elephant flamingo fox_face frog_face hamster_face hedgehog "
        "koala lion_face monkey_face owl panda_face penguin pig_face rabbit_face sauropod tiger_face turtle "
        "unicorn_face",
        "Adopt a Friend|Wild Life|Zoo Day|Pet Club|Into the Wild|Hello Friend|Animal Planet|Stay Curious|Be Kind",
    ),
    "sea": _theme(
        "anchor beach_with_umbrella crab desert_island dolphin octopus palm_tree ring_buoy sailboat shark spiral_shell "
        "spouting_whale tropical_fish",
        "Beach Party|Deep Blue|Ocean Day|Sea You Soon|Island Life|Summer Camp|Dive In|Save Our Seas|Hello Summer",
    ),
    "plants": _theme(
        "blossom bouquet butterfly cactus cherry_blossom evergreen_tree four_leaf_clover hibiscus honeybee lady_beetle "
        "maple_leaf potted_plant rose seedling sunflower tulip",
        "Spring Time|Bloom|Plant Shop|Grow Slow|Garden Club|Hello Spring|In Full Bloom|Flower Fair|Good Roots",
    ),
    "travel": _theme(
        "airplane automobile bicycle bus camera compass delivery_truck ferris_wheel helicopter luggage motor_scooter "
        "racing_car rocket speedboat steam_locomotive taxi tent tractor",
        "Let's Go|Road Trip|Go Places|City Tour|Weekend Away|On the Move|Travel Light|Explore More|Next Stop",
    ),
    "sport": _theme(
        "american_football baseball basketball_and_hoop bowling boxing_glove dartboard ice_skate kite roller_skate "
        "skateboard soccer_ball sports_medal tennis_racquet_and_ball trophy volleyball",
        "Game Day|Play Hard|Join the Team|Cup Final|Open Training|Win It|Summer League|Game On|Move More",
    ),
    "culture": _theme(
        "accordion artist_palette clapper_board drum game_die guitar headphone jigsaw_puzzle_piece microphone "
        "mirror_ball musical_note radio saxophone television trumpet video_game violin",
        "Live Tonight|Open Mic|Jazz Night|Art Fair|Show Time|Game Night|Film Club|Play It Loud|Encore",
    ),
    "work": _theme(
        "alarm_clock books gear graduation_cap hammer key light_bulb lock magnet magnifying_glass microscope pencil "
        "personal_computer round_pushpin school_satchel telescope",
        "Big Ideas|Back to School|Learn More|Study Time|Make It|New Semester|Work Smart|Bright Minds|Open Day",
    ),
    "sky": _theme(
        "cloud cloud_with_lightning cloud_with_rain crescent_moon fire globe glowing_star rainbow ringed_planet "
        "snowflake snowman sun sun_behind_cloud sun_with_face umbrella volcano",
        "Good Morning|Look Up|Blue Skies|Dream Big|Our Planet|Forecast|Night Sky|Stay Warm|Shine On",
    ),
    "party": _theme(
        "balloon bell christmas_tree confetti_ball crown gem_stone ghost grinning_face_with_star_eyes "
        "heart_with_ribbon jack_o_lantern love_letter party_popper partying_face purple_heart red_heart ribbon ring "
        "robot_face smiling_face_with_heart_eyes smiling_face_with_sunglasses sparkles sparkling_heart teddy_bear "
        "wrapped_present",
        "Happy Birthday|Thank You|Let's Party|With Love|Congrats|You're Invited|Best Wishes|Celebrate|Save the Date",
    ),
    "fashion": _theme(
        "athletic_shoe billed_cap dark_sunglasses dress handbag high_heeled_shoe lipstick scarf shopping_bags t_shirt "
        "top_hat watch",
        "New In|Summer Style|Big Sale|Street Wear|Look Good|Flash Sale|Outlet Week|Dress Up|Final Sale",
    ),
}

# Objects of designs that only the evaluation uses (assets of the pool ``test``).
UNSEEN: dict[str, tuple[str, ...]] = {
    "fruit": ("chestnut", "melon", "olive"),
    "vegetables": ("garlic", "onion", "potato"),
    "meals": ("bagel", "burrito", "rice_ball"),
    "sweets": ("custard", "pie", "shaved_ice"),
    "drinks": ("beer_mug", "glass_of_milk", "wine_glass"),
    "animals": ("duck", "raccoon", "wolf_face"),
    "sea": ("blowfish", "lobster", "squid"),
    "plants": ("deciduous_tree", "herb", "lotus"),
    "travel": ("canoe", "fire_engine", "parachute"),
    "sport": ("badminton_racquet_and_shuttlecock", "rugby_football", "yo_yo"),
    "culture": ("banjo", "carousel_horse", "circus_tent"),
    "work": ("paperclip", "test_tube", "toolbox"),
    "sky": ("droplet", "full_moon_with_face", "shooting_star"),
    "party": ("crystal_ball", "nesting_dolls", "pinata"),
    "fashion": ("gloves", "hiking_boot", "jeans"),
}

_PHOTO_TITLES = (
    "Look Closer",
    "Stories",
    "New Heights",
    "Portraits",
    "Magazine",
    "Open House",
    "The Journey",
    "Discover",
)
_KICKERS = ("New", "This Week", "Special", "Limited", "Weekend", "Now Open", "Our Pick", "Season 3", "Issue 12", "Club")
_SUBTITLES = (
    "Open every day from {hour} am",
    "{weekday}, {day} {month}",
    "From {day} {month}",
    "Only this {weekday}",
    "Join us on {day} {month}",
    "Made with love since {year}",
    "Free entry, all welcome",
    "The best in town",
    "Come and see",
    "Doors open at {hour} pm",
    "Simple things, done well",
    "Best of {year}",
)
_BUTTONS = ("Shop now", "Book now", "Join us", "Read more", "Order now", "Sign up", "Get tickets", "Try it", "Discover")
_BADGES = (
    "-{percent}%",
    "{percent}% OFF",
    "${price}",
    "NEW",
    "SALE",
    "FREE",
    "2 for 1",
    "HOT",
    "TOP {ten}",
    "${price}.99",
)
_MONTHS = ("Jan", "Feb", "March", "April", "May", "June", "July", "Aug", "Sept", "Oct", "Nov", "Dec")
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def _choice(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _filled(rng: np.random.Generator, pattern: str) -> str:
    return pattern.format(
        hour=int(rng.integers(6, 12)),
        day=int(rng.integers(1, 29)),
        month=_choice(rng, _MONTHS),
        weekday=_choice(rng, _WEEKDAYS),
        year=int(rng.integers(1960, 2027)),
        percent=int(rng.integers(1, 8)) * 10,
        price=int(rng.integers(1, 30)),
        ten=int(rng.integers(1, 4)) * 5,
    )


def title(rng: np.random.Generator, theme: str | None) -> str:
    """A headline; ``theme`` None is for designs about a photograph."""
    return _choice(rng, _PHOTO_TITLES if theme is None else THEMES[theme].titles)


def kicker(rng: np.random.Generator) -> str:
    """The small line above a headline."""
    return _choice(rng, _KICKERS)


def subtitle(rng: np.random.Generator) -> str:
    """The line below a headline, such as a time, a place or a reason."""
    return _filled(rng, _choice(rng, _SUBTITLES))


def button(rng: np.random.Generator) -> str:
    """The label of a button."""
    return _choice(rng, _BUTTONS)


def badge(rng: np.random.Generator) -> str:
    """A short, loud badge text: a price, a discount, a word."""
    return _filled(rng, _choice(rng, _BADGES))


def offer(rng: np.random.Generator) -> str:
    """A huge discount or price."""
    return _filled(rng, _choice(rng, ("{percent}% OFF", "-{percent}%", "SALE", "ONLY ${price}", "2 FOR 1")))


def date(rng: np.random.Generator) -> tuple[str, str]:
    """Day and month, for a calendar chip."""
    return str(int(rng.integers(1, 29))), _choice(rng, _MONTHS).upper()[:3]


def article(words: str) -> str:
    """``words`` with "a" or "an"."""
    return f"{'an' if words[0].lower() in 'aeiou' else 'a'} {words}"
