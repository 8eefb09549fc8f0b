"""The words that synthetic facts are made of: common, short, and of one kind per list."""

# Words in a string read better than a list of strings.
# ruff: noqa: SIM905

ADJECTIVES = """amber silent crimson gentle hollow ancient frozen golden hidden humble ivory jagged
lively lonely misty narrow noble pale quiet rapid rustic scarlet silver solemn steady stormy sunny
tender velvet violet weary wild windy wooden bright broken clever copper distant early""".split()
NOUNS = """harbor lantern meadow falcon canyon glacier orchard bridge castle comet desert dragon eagle
engine feather forest fountain hammer island jungle kettle ladder marble mirror monkey mountain ocean
palace parrot pebble pillow planet rabbit river rocket shadow sparrow temple thunder tiger""".split()
SECRETS = """plum cherry mango lemon olive walnut almond ginger pepper honey butter cotton linen ribbon
button whistle trumpet violin guitar piano drum saddle anchor barrel basket bottle candle carpet pencil
needle scissors spoon teapot umbrella wagon wallet zipper magnet prism pulley""".split()
VARIABLES = """quartz basalt granite topaz opal jade pearl coral onyx garnet ruby sapphire emerald
cobalt nickel zinc tin iron bronze brass chrome argon neon helium xenon radon boron carbon sodium sulfur
iodine calcium barium cesium indium osmium radium titan rhodium mica""".split()
PEOPLE = """Mary John Sandra Daniel Fred Bill Julie Jeff Emma Liam Noah Olivia Lucas Mia Ethan Sophia
Oscar Ruby Henry Alice Peter Clara Simon Laura Victor Nina Martin Helen Walter Irene Hugo Paula Felix
Diana Arthur Sarah Bruno Elena Marco Greta""".split()
FRIENDS = """Anna Tom Kate Jack Rose Frank Grace Lily Ben Adam Eva Karl Ivan Max Leo Jane Ella Lucy Luke Ryan
Eric Amy Tina Carl""".split()
PLACES = """kitchen bathroom bedroom hallway garden office park school cinema library museum station
market bakery church theater stadium hospital airport hotel cellar attic balcony garage stable barn mill
tower square beach""".split()
OBJECTS = """apple football milk book lamp clock letter crown rope shield sword coin ring scarf hat coat
glove boot shirt jacket camera radio phone tablet laptop ticket map flag torch brush bucket broom shovel
axe saw plate bowl cup fork knife""".split()
MOVES = ("went to", "moved to", "walked to", "travelled to")
